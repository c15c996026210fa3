"""From shapes to dollars: what tokens cost on GPUs that need not be there."""
