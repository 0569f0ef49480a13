"""`python -m trioswitch bench`: what a server delivers, how fast, and how late.

The parent (`scenarios`, on Trio) starts one or more client processes (`worker`) and tells them what to do in lines of JSON
(`orders`). A client process holds many plain sockets and one epoll; it counts what arrives and how old it is (`recorder`),
and reports five times a second. Needs the extra `bench`: numpy, rich, matplotlib.
"""
