"""The demo, which trains and evaluates every task on synthetic videos, and the quickstart, which needs no training."""
