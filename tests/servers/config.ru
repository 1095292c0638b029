# An application that knows nothing of serverswap. What is posted is repeated. The answer to /ill has status 500.
run lambda { |environment|
  answer = "#{ENV['SERVERSWAP_GENERATION']} #{Process.pid} #{environment['rack.input']&.read}\n"
  [environment['PATH_INFO'] == '/ill' ? 500 : 200, { 'content-type' => 'text/plain', 'content-length' => answer.bytesize.to_s }, [answer]]
}
