# Every target sets up what it needs first (scripts/setup.sh); `make setup` does nothing else.
PYTHON_VENV := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo test stress lint bench wheel clean distclean

help:     ## this list
	@sed -n 's/^\([a-z]*\): *## */  make \1\t/p' Makefile | expand -t 20

setup:    ## system packages and .venv with the package in it, for demo, test and lint
	@scripts/setup.sh demo test lint

demo:     ## semantic search over WordNet, with the activations cached
	@scripts/setup.sh demo
	@$(PYTHON_VENV) examples/demo/demo.py $(ARGS)

test:     ## C++ tests with sanitizers, consumers, Python tests with each framework
	@scripts/setup.sh test
	@scripts/test.sh

stress:   ## long forms of the tests with killed, stopped and damaged processes and files
	@scripts/setup.sh test
	@scripts/stress.sh $(ARGS)

lint:     ## formats, clang-tidy, ruff, mypy --strict
	@scripts/setup.sh lint
	@scripts/lint.sh

bench:    ## benchmarks of C++ and Python; results as JSON under build/bench
	@scripts/setup.sh bench
	@scripts/bench.sh $(ARGS)

wheel:    ## one manylinux wheel in wheelhouse/, tested in an empty environment
	@scripts/setup.sh wheel
	@scripts/wheel.sh

clean:    ## removes what was built, keeps .venv
	rm -rf build dist wheelhouse

distclean: clean ## removes .venv too
	rm -rf .venv
