"""Evaluation of digits: metrics, the real digits as reference, and plots."""
