"""What to train with, and what it will cost: read from the data and the machine, rehearsed, and compared with what happened."""
