"""What finished runs do well and badly: mistakes, groups of rows, calibration, and runs side by side, as pages."""
