# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := overhead length_batching optimizers export compression compression_curve compression_quantized \
	compression_tasks untrained quantization pruning weight_fusion layer_freezing data_pruning autotune utilization \
	training_speed training_speed_tasks weight_averaging memory_growth low_bit tasks tasks_compressed customer_service finance_monitor \
	recommendation search hyperparameter_search communication

.PHONY: demo test test-lowest test-newest faults style quality docs bench clean

demo: .venv/installed
	$(BIN)/hf-efficient run customer-service

# Whole files go to a process each: they share what is slow to make
test: .venv/installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# The same tests on the lowest and on the newest transformers that setup.py allows
test-lowest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# Two hundred kills and more, each begun again: what comes out is what would have
faults: .venv/installed
	HF_EFFICIENT_KILLS=45 $(BIN)/python -m pytest tests/faults -n logical --maxprocesses 4 -rP

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r hf_efficient tasks
	$(BIN)/pip-audit --skip-editable --progress-spinner off

# Pages to read: build/site/index.html
docs: .venv/installed
	$(BIN)/python -m mkdocs build

bench: .venv/installed
	for name in $(BENCHMARKS) report; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv .venv-lowest .venv-newest build dist *.egg-info

# Plain pip finds an installed torch that fits; PIP_* variables and pip's own configuration choose the index.
.venv/installed: setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Hugging Face's packages are not pinned there; transformers is, to the least that setup.py allows, in .venv-lowest
FREE := transformers|tokenizers|huggingface.hub|accelerate|datasets|peft|safetensors
LOWEST := $(shell sed -nE 's/^ *"transformers>=([0-9.]+),.*/\1/p' setup.py)

.venv-lowest/installed .venv-newest/installed: setup.py pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -vE '^($(FREE))==' constraints.txt > $(@D)/constraints.txt
	if [ $(@D) = .venv-lowest ]; then echo 'transformers~=$(LOWEST).0' >> $(@D)/constraints.txt; fi
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade \
		--constraint $(@D)/constraints.txt --editable '.[dev]'
	touch $@
