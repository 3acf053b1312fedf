"""The worker of a host: one Celery worker per slot, its keeper and its runner, and the engines that run models."""
