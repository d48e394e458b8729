"""The daemon that owns one device's memory and lends it, and the `broker` command."""

if __name__ != "vrambroker.broker":
    raise ImportError("import vrambroker.broker: the folder broker/ is not a package of its own")
