"""Watching a server: samples, alarms, health checks, metrics for Prometheus."""

from .exposition import metrics_of_workers, metrics_page
from .health import health_pages
from .monitor import Alarm, Monitor, Thresholds

__all__ = ["Alarm", "Monitor", "Thresholds", "health_pages", "metrics_of_workers", "metrics_page"]
