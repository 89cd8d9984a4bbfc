# make demo   the whole thing in minutes, no download of weights
# make test   style, types and tests, as CI runs them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo demo-hack test test-slow lint bench studies docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/reelign demo

demo-hack: install
	$(BIN)/reelign demo --hack

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each: faster than one of two. A file's tests stay together, with what they share.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

bench: install
	$(BIN)/python benchmarks/reward_gradient_step.py --compile
	$(BIN)/python benchmarks/shapes_instrument.py
	$(BIN)/python benchmarks/frame_decoding.py
	$(BIN)/python benchmarks/scoring_speed.py
	$(BIN)/python benchmarks/set_metrics.py
	$(BIN)/python benchmarks/set_metrics_clips.py
	$(BIN)/python benchmarks/camera_moves.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/causal_rollout.py
	$(BIN)/python benchmarks/translation_step.py
	$(BIN)/python benchmarks/planner.py

studies: install
	$(BIN)/python benchmarks/guard_calibration.py
	$(BIN)/python benchmarks/studies.py objective chain
	$(BIN)/python benchmarks/planted_defects.py
	$(BIN)/python benchmarks/judges.py ../shared/data/selfplay_takes
	$(BIN)/python benchmarks/tournaments.py
	$(BIN)/python benchmarks/scoring_resume.py
	$(BIN)/python benchmarks/selfplay_run.py
	$(BIN)/python benchmarks/self_forcing_students.py
	$(BIN)/python benchmarks/self_forcing.py
	$(BIN)/python benchmarks/long_rollout.py
	$(BIN)/python benchmarks/translation.py

docs: install
	$(BIN)/pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
