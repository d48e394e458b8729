"""What a worker uses: a synchronous facade over the native client and the control plane."""

if __name__ != "vrambroker.client":
    raise ImportError("import vrambroker.client: the folder client/ is not a package of its own")
