# The README's commands. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo examples test test-slow test-all bench check install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("plait needs Python 3.11 or later; make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# Drivers of storage systems, and servers for them to speak to: for tests alone.
.venv/servers: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[servers]'
	touch $@

demo: install
	$(BIN)/plait train examples/austen.toml --out runs/demo
	$(BIN)/plait evaluate runs/demo --split test
	$(BIN)/plait generate runs/demo --prompt "It is a truth universally acknowledged," --tokens 160
	@echo
	@echo "The run is in runs/demo: events.jsonl, checkpoints/, tensorboard/. To go on writing: $(BIN)/plait generate runs/demo --prompt '...'"

examples: install
	$(BIN)/python -m examples.all

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check .venv/servers
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: install .venv/servers
	$(BIN)/pytest -n 2 --dist loadfile -m slow

test-all: test test-slow

bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python bench/all.py

clean:
	rm -rf .venv build dist *.egg-info
