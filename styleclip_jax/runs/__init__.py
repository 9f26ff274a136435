"""Runs of scripts: command line, results, experiments, several processes."""
