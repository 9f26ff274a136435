"""What a script needs: command line, results, experiments, several processes."""
