# An application that knows nothing of serverswap.
run lambda { |_|
  answer = "#{ENV['SERVERSWAP_GENERATION']} #{Process.pid}\n"
  [200, { 'content-type' => 'text/plain', 'content-length' => answer.bytesize.to_s }, [answer]]
}
