# Start with `make demo`; `make serve` runs the service; `make test` before a commit. Needs only Python 3.11+ and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
MLFLOW := $(VENV)/mlflow
export PYTHONUNBUFFERED := 1
unexport PYTHONDONTWRITEBYTECODE  # or each of hundreds of processes would compile the sources again

.DEFAULT_GOAL := help
.PHONY: help install demo serve pictures test test-unit test-long test-browser test-mlflow matrix test-isa gpu gpu-wheels lint format lock parity study families resume digests fuzz tour bench bench-service images chaos soak clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(READY) ## build .venv from the lock

$(READY): requirements.lock requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.x")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "Python could not create a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing the locked packages and torch (once; a few minutes, 6 GB) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-torch.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## a distillation from start to end, through the real service; DATA=folder uses your own COCO data
	@$(BIN)/fgd demo $(if $(DATA),--data "$(DATA)")

serve: $(READY) ## the API and a worker on 127.0.0.1:8000; DATA_ROOTS=/a:/b allows data sets below these folders
	@$(if $(DATA_ROOTS),FGD_DATA_ROOTS="$(DATA_ROOTS)") $(BIN)/fgd serve

test: $(READY) ## unit, parity, real servers and real trainings; under 15 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 --durations-min=2 -m "not gpu and not e2e and not long and not chaos and not images and not matrix and not browser and not mlflow"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 --durations-min=5 -m "e2e and not gpu and not long and not chaos and not images and not mlflow" tests/e2e tests/chaos
	@echo "the browser tests and the one with an MLflow server were skipped: make test-browser and make test-mlflow bring what they need and run them, as .ci/run does"

test-long: $(READY) ## the tests of ten seconds and more that `make test` leaves out; 7 minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "long and not gpu and not mlflow and not browser"

test-browser: $(READY) ## the dashboard's pages in a real Chromium, which it brings if it can; 3 minutes
	@$(BIN)/python -m tests.browser.bring
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -rs -m browser tests/browser

pictures: $(READY) ## the pictures of docs/dashboard.md, of a service that trains for them; minutes on 2 free cores
	@$(BIN)/python -m tests.browser.bring
	@$(BIN)/python -m tests.studies.dashboard_pictures

test-mlflow: $(READY) $(MLFLOW)/.ready ## what a real MLflow server shows of a job; a minute, and another for its packages (700 MB, once)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m mlflow tests/e2e/test_mlflow.py

$(MLFLOW)/.ready: tests/mlflow.lock
	@$(PYTHON) -m venv $(MLFLOW)
	@$(MLFLOW)/bin/pip install --quiet --disable-pip-version-check uv
	@$(MLFLOW)/bin/uv pip install --quiet --python $(MLFLOW)/bin/python --require-hashes -r tests/mlflow.lock
	@touch $@

images: $(READY) ## build the API's image without Docker, by running its Dockerfile in a folder; a few minutes
	@$(BIN)/python -m pytest -m images tests/e2e/test_images.py

test-unit: $(READY) ## the fast tests; a few minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not e2e and not slow and not chaos and not images and not matrix and not browser and not mlflow"

matrix: $(READY) ## every method between every two families, on tiny networks; a minute or two
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/unit/methods/test_matrix.py

test-isa: $(READY) ## the numeric tests as if on processors with fewer instructions; prints a table; half an hour on 2 cores
	@$(BIN)/python -m tests.studies.isa $(ARGS)

gpu: ## all GPU checks in 8 minutes, on a machine with torch and no network; WHEELS=folder has the missing packages
	@$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m tests.studies.gpu run $(if $(WHEELS),--wheels "$(WHEELS)")

gpu-wheels: $(READY) ## download those packages beforehand into WHEELS=folder, with a network and the same Python; 75 MB
	@test -n "$(WHEELS)" || { echo "name the folder for the packages: make gpu-wheels WHEELS=folder"; exit 2; }
	@$(BIN)/python -m tests.studies.gpu fill "$(WHEELS)"

lint: $(READY) ## format check, ruff, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## reformat the code with ruff
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

parity: $(READY) ## every method with golden numbers against those of its authors' code
	@for file in tests/parity/*_reference.npz; do \
		$(BIN)/python -m fgd.parity $$file $${file%.npz}.json || exit 1; done

study: $(READY) ## train what is missing of the study of docs/study.md, hours; ARGS="--until 18:00 bccd-fcos" limits it
	@PYTHONPATH=. $(BIN)/python -m tests.studies.comparison run $(ARGS)

families: $(READY) ## check that the export of each family and trunk keeps its AP; DATA=folder is COCO data
	@$(BIN)/python tests/studies/families.py "$(DATA)" --out runs/families

resume: $(READY) ## interrupt small jobs 20 times at random steps, through the real service, and compare the bytes
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/studies/resume.py --out runs/resume --interruptions 20

digests: $(READY) ## check that a change leaves trainings the same to the bit: ARGS="--save FILE" before, "--compare FILE" after; 4 minutes
	@$(BIN)/python tests/studies/digests.py $(ARGS)

chaos: $(READY) ## every listed fault and a kill at every failpoint, on SQLite and PostgreSQL; about half an hour
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos -n 2 --dist worksteal -m chaos

soak: $(READY) ## run jobs while random parts are killed and frozen: MINUTES=30 DATABASE=sqlite|postgres SEED=number
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30) \
		--database $(or $(DATABASE),sqlite) $(if $(SEED),--seed $(SEED))

fuzz: $(READY) ## feed random input to everything that reads data from outside; prints a table; MINUTES=20 SEED=number; exit 1 on a fault
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED)) $(ARGS)

tour: $(READY) ## run docs/tour.ipynb against a service of its own and keep what came out; two minutes
	@$(BIN)/python -m tests.tour

bench: $(READY) ## time loss, step, cache, pipeline and start against their lower bounds; half an hour, ARGS=--quick under 5 minutes
	@PYTHONPATH=. $(BIN)/python tests/studies/bench.py $(ARGS)

bench-service: $(READY) ## time reads, 304s, lists and metric writes against an empty route; 3 minutes, ARGS=--postgres for PostgreSQL
	@PYTHONPATH=. $(BIN)/python tests/studies/bench_service.py $(ARGS)

lock: $(READY) ## resolve the lock files again
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev --no-header \
		--output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra postgres --extra s3 \
		--no-header --constraint requirements.lock --output-file deploy/requirements.lock pyproject.toml
	@echo mlflow | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--output-file tests/mlflow.lock -

clean: ## remove the environment and the demo's folder, but not the service's (.fgd)
	rm -rf $(VENV) .fgd/demo build dist *.egg-info
