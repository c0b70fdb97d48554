// The part of the sanitizers' driver that asks a layer through an exchange.
#pragma once

void hand_over();
