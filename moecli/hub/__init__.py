"""The Hub over the network and its cache: one client, resumed and verified downloads, headers by range request."""
