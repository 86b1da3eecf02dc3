"""The diffusion process: schedule, steppers, loss."""
