"""Brokers carry messages between the nodes of a cluster.

port        the interface of a broker, which every engine implements
in_process  an engine between switches of one program
redis       an engine between machines
nats        an engine between machines, which a stream of JetStream puts in order
postgres    an engine between the machines of a small cluster
open        from a broker's URL to the broker
"""

from .in_process import Exchange, InProcessBroker
from .open import open_broker
from .port import Broker, Receiver

__all__ = ["Broker", "Exchange", "InProcessBroker", "Receiver", "open_broker"]
