"""Exact gradients of training in constant memory."""
