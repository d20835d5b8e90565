"""The model gateway: holds the model API's key, so that no job's pod does.

A job's agent calls the gateway with a token of its pod's own; the gateway proves who calls (``identity``), that the
caller is the running attempt of a job (``admission``, ``registry``), that the job may spend and ask (``ledger``,
``limits``), and passes the request on with the key (``proxy``). What comes back is streamed through and counted
(``usage``, ``prices``). It keeps no state that it cannot lose.
"""
