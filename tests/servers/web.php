<?php
if ($_SERVER['REQUEST_URI'] === '/ill') {
    http_response_code(500);
}
$answer = getenv('SERVERSWAP_GENERATION') . ' ' . getmypid() . "\n";
header('Content-Length: ' . strlen($answer));
echo $answer;
