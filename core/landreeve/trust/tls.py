"""A TLS socket that is closed when its handshake fails."""

import ssl


class ClosingSocket(ssl.SSLSocket):
    """For ``SSLContext.sslsocket_class``. Libraries forget the socket of a failed handshake until the garbage collector
    comes; behind a captive portal that is one at every try."""

    def do_handshake(self, block: bool = False) -> None:
        """As ever; on failure the socket is closed before the error goes on."""
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            self.close()
            raise
