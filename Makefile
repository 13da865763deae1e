# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := overhead length_batching optimizers export compression compression_curve compression_quantized \
	compression_tasks untrained quantization pruning weight_fusion layer_freezing data_pruning autotune utilization \
	training_speed low_bit tasks tasks_compressed customer_service finance_monitor recommendation search \
	hyperparameter_search

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
	for name in $(BENCHMARKS) report; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info

# Plain pip finds an installed torch that fits; PIP_* variables and pip's own configuration choose the index.
.venv/installed: setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
