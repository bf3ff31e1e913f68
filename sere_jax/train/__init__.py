"""Training of any network by any loss: state, step, driver, optimizers, checkpoints."""
