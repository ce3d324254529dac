"""What all verbs share: project, settings, the screen, earlier results, a training run."""
