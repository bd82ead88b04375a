"""One module a step, in flow order: pure functions from files to files. A stage never calls a stage."""
