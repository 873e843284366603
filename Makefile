.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
IN := $(VENV)/bin/
ARGS ?=
RACES = -fsanitize=thread

.PHONY: help install format lint typecheck test test-all torture numerics soak sanitize races smoke train sweep paper zoo notebooks bench bench-quick gpu clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/installed  ## make .venv and install everything that is needed into it

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(IN)python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

format: install  ## format the code
	$(IN)ruff format src tests
	$(IN)ruff check --fix src tests

lint: install  ## check style
	$(IN)ruff format --check src tests
	$(IN)ruff check src tests

typecheck: install  ## check types
	$(IN)mypy

test: lint typecheck  ## lint, types and the default tests: offline, no GPU
	$(IN)python -m pytest -n auto --dist loadfile $(ARGS)

test-all: lint typecheck  ## the slow tests too
	$(IN)python -m pytest -m 'not gpu and not cluster' $(ARGS)

torture: install  ## hurt real runs, their files and configs; a table of what survived (ARGS="--kill 100")
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(IN)python -m torture $(ARGS)

numerics: install  ## every way to compute the recurrences against the readable loop, on random cases (ARGS="--cases 200")
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(IN)python -m torture.numerics $(ARGS)

soak: install  ## does anything grow: 20 minutes of short runs, a sweep of 100 (ARGS="--minutes 5 --jobs 10")
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(IN)python -m torture.soak $(ARGS)

sanitize: install  ## the kernel's tests with a build that checks every address and undefined behaviour (g++)
	WRNN_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(IN)python -m pytest tests/test_recurrence.py $(ARGS)

races:  ## the kernel's threads under ThreadSanitizer (g++), each result compared with that on one thread
	@folder=$$(mktemp -d) && trap "rm -rf $$folder" EXIT && for real in float double; do \
	g++ -O1 -g -march=native -std=c++17 -fopenmp $(RACES) -DREAL=$$real -c tests/races/main.cpp -o $$folder/main.o && \
	g++ -O1 -g -std=c++17 -pthread $(RACES) tests/races/gomp.cpp $$folder/main.o -o $$folder/races && \
	TSAN_OPTIONS=halt_on_error=1 $$folder/races || exit 1; done

smoke: install  ## three steps of everything on made-up pictures
	$(IN)python src/train.py debug=default images=fake_mnist task.datamodule.num_val=100 $(ARGS)

train: install  ## a first look: a Wave-RNN learns psMNIST, within ten minutes on two CPU cores
	$(IN)python src/train.py experiment=quickstart $(ARGS)

sweep: install  ## three seeds of a small copy task
	$(IN)python src/train.py task=copy sweep=seeds trainer.max_steps=500 $(ARGS)

paper: install  ## every table and figure of the paper beside our runs, from results/ledger, without training
	$(IN)python src/paper.py write $(ARGS)

zoo: install  ## every core on two tasks, a minute each (about 40 minutes), as a table in place of results/zoo.md
	$(IN)python src/zoo.py $(ARGS)

notebooks: install  ## render the notebook of waves into results/notebooks/ (installs the extra "notebooks")
	$(IN)python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks]'
	cd notebooks && ../$(IN)jupyter nbconvert --execute --to markdown --output-dir ../results/notebooks 02_looking_at_waves.ipynb

bench: install  ## on the CPU, the paper's loop against ours at the sizes of all tasks; writes results/bench/
	$(IN)python src/bench.py --device cpu --output results/bench/cpu.json $(ARGS)

bench-quick: install  ## the same in about a minute: psMNIST and copy
	$(IN)python src/bench.py --device cpu --model wrnn --task psmnist copy100 --variant released torch cpp --repeats 2 $(ARGS)

gpu:  ## on a machine with a GPU: tests, benchmark, an epoch; no network, no .venv; ARGS="--minutes 9 --output DIR"
	$(PYTHON) src/gpu.py $(ARGS)

clean:  ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
