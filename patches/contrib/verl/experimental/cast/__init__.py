# Copyright 2026 Bytedance Ltd. and/or its affiliates
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""CAST: self-distillation for GRPO without answers (arXiv 2606.00172); docs/algo/cast.md.

`algorithm.adv_estimator=cast` trains with it, under verl's V1 trainer. `main_ppo` calls `prepare.prepare_run`, which
names the trainer with a self-teacher. That trainer names its actor worker; both come from training/classes.py.
"""
