# An application that knows nothing of serverswap. What is posted is repeated.
run lambda { |environment|
  answer = "#{ENV['SERVERSWAP_GENERATION']} #{Process.pid} #{environment['rack.input']&.read}\n"
  [200, { 'content-type' => 'text/plain', 'content-length' => answer.bytesize.to_s }, [answer]]
}
