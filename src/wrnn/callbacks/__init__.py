"""What happens around training: saving, stopping, telling, drawing."""
