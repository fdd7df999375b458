import numpy as np, keras
keras.config.set_dtype_policy("mixed_float16")
x=np.random.default_rng(0).normal(size=(6,3)).astype("float32"); y=np.array([0,1,2,0,1,2])
for ga in (None,2):
  for ls in (False, True):
    keras.utils.set_random_seed(0)
    m=keras.Sequential([keras.Input((3,)),keras.layers.Dense(3)])
    m.set_weights([np.eye(3),np.zeros(3)])
    o=keras.optimizers.SGD(0.3,use_ema=True,ema_momentum=0.7,gradient_accumulation_steps=ga)
    m.compile(o,keras.losses.SparseCategoricalCrossentropy(from_logits=True),auto_scale_loss=ls)
    m.fit(x,y,batch_size=2,shuffle=False,verbose=0)
    print(ga,ls,type(m.optimizer).__name__,m.get_weights()[0][0])
