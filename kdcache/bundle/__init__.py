"""A folder with all that a deployed network needs: files in two precisions, labels, a script, a test picture."""
