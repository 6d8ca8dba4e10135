"""What exists to measure this project: scripts and drivers that no user of Outpace needs. Run from the checkout."""
