// The part of the sanitizers' driver that replays policies.
#pragma once

void replay_everything();
