"""What a run tells: its log, its plot, the forecast beside the real loop, the card of the drafter."""
