# What operators and developers do with image-builder. `make` lists it.
# The work is done by scripts in .devcontainer/, which the dev container and CI share.

.DEFAULT_GOAL := help
.PHONY: help services run up logs down prep devc demo test browser newer chaos soak bench lint manifests fmt

OPS := .devcontainer/ops.sh
SUITE ?= trixie

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

services: ## start RabbitMQ (management on 15672), a registry (5000) and its front end (8081)
	@$(OPS) services

run: prep ## run one worker from source, with config/.env
	cargo run -- serve

up: ## build the service's image and run three replicas on one queue (8080, 8082, 8083)
	@$(OPS) up

logs: ## follow the logs of the three replicas
	@$(OPS) logs

down: ## stop the replicas, and the services that were started from here
	@$(OPS) down

prep: ## install what is missing, create config/.env, get or make the base images
	@$(OPS) prep

devc: ## open the dev container (needs the devcontainer command and images that can be pulled)
	@$(OPS) devc

demo: ## see it work, from nothing (BROKER=rabbitmq; REPO=owner/name [TOKEN=...] for a repository on GitHub)
	@$(OPS) demo

test: ## set everything up and run all tests
	@$(OPS) test

browser: ## try the page in Chromium, on real builds as well, and keep pictures of it in target/screenshots
	@$(OPS) browser

newer: ## run the tests of engine and broker on newer ones alone (SUITE=trixie, or sid, which moves)
	@NEWER_SUITE=$(SUITE) $(OPS) newer

chaos: ## break everything at random while building, and count (BROKER=embedded RUNS=500 SEED=n CHAOS_RESTARTS=0)
	@$(OPS) chaos

soak: ## build for half an hour, and see that one worker leaks nothing (SOAK_MINUTES=30 SOAK_JOBS=3000)
	@$(OPS) soak

bench: ## time the worker beside git clone, docker build and docker push, and with many requests (ROUNDS=10 FLOOD=10000)
	@$(OPS) bench

lint: ## check format, lints, documentation, dependencies and scripts
	@$(OPS) lint

manifests: ## check config/kubernetes against the schemas of Kubernetes (gets a package from PyPI)
	@$(OPS) manifests

fmt: ## format the code
	cargo fmt --all
