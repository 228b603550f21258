import torch

from model import benchmark
from model.dit import DiT


def test_the_matrix_products_of_a_step_are_all_counted():
    digits, tokens, width = 3, 196, 256
    shapes = benchmark.products(DiT(width=width, depth=2, heads=4), digits)
    counted = sum(2 * b * m * k * n for b, m, k, n in shapes)
    image = digits * tokens * (2 * width * 384 + 2 * width**2 + 2 * 8 * width**2) * 2
    label = (
        digits * (2 * width * 384 + 2 * width**2 + 2 * 8 * width**2) + digits * 2 * width * 128
    )  # the last block only reads the class
    attention = digits * (4 * (tokens + 1) + 4 * tokens) * 197 * 64 * 2 * 2
    ends = digits * tokens * 2 * 2 * 4 * width
    time = 2 * 2 * width**2 + 2 * width * width * (12 + 8 + 2)
    assert counted == image + label + attention + ends + time


def test_the_plain_loop_draws_the_same_digits():
    torch.manual_seed(0)
    network = DiT(width=32, depth=2, heads=2).requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    labels = torch.arange(3)
    drawn = torch.cat(list(benchmark.draw(network, labels, 5, 4, 1.0)))
    assert (drawn.int() - benchmark.plain(network, labels, 5, 4).int()).abs().max() <= 1
    assert drawn.float().std() > 10
