"""The dispatcher: reads the policy's input, writes the leases that it decided, and rings the slots."""
