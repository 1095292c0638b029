<?php
$answer = getenv('SERVERSWAP_GENERATION') . ' ' . getmypid() . "\n";
header('Content-Length: ' . strlen($answer));
echo $answer;
