"""Measuring digits: metrics, the real digits to compare with, and plots."""
