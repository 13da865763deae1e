# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test style quality bench clean

demo: .venv/installed
	$(BIN)/hf-efficient run customer-service

# Whole files go to a process each: they share what is slow to make
test: .venv/installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.length_batching
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.compression
	$(BIN)/python -m benchmarks.compression_curve
	$(BIN)/python -m benchmarks.compression_tasks
	$(BIN)/python -m benchmarks.untrained
	$(BIN)/python -m benchmarks.quantization
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf .venv build dist *.egg-info

# Plain pip finds an installed torch that fits; PIP_* variables and pip's own configuration choose the index.
.venv/installed: setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
