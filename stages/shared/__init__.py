"""What all verbs share: settings, paths, the screen, results of earlier stages, one training run."""
