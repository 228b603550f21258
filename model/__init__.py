"""All that is needed to draw: network, flow, images, weights."""
