"""Brokers carry messages between the nodes of a cluster.

port        the interface of a broker, which every engine implements
in_process  an engine between switches of one program
"""

from .in_process import Exchange, InProcessBroker
from .port import Broker, Receiver

__all__ = ["Broker", "Exchange", "InProcessBroker", "Receiver"]
