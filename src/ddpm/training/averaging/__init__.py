"""Averages of the weights: tracked on the way, kept as snapshots, put together afterwards, chosen by the held-out loss."""
