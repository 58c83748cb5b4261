# Aliases only; dev.py does the work and needs no make.
.PHONY: demo test lint slow figures
demo test lint slow figures:
	python3 dev.py $@
