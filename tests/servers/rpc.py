"""A gRPC server that knows nothing of serverswap. Argument: a port. A call that says `slow` takes 2.5 s."""

import os
import sys
import time
from concurrent import futures

import grpc


class Web(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(self.generation)

    def generation(self, request, context):
        time.sleep(2.5 if request == b"slow" else 0)
        return os.environ["SERVERSWAP_GENERATION"].encode()


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers([Web()])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
