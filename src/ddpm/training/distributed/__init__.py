"""One run on many processes: which process this is, how gradients meet, and how many hands write one save."""
