# Aliases only; dev.py does the work and needs no make.
.PHONY: demo test lint slow
demo test lint slow:
	python3 dev.py $@
